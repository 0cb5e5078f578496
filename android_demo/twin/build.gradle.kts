plugins {
    id("org.jetbrains.kotlin.jvm")
    application
}

application {
    mainClass.set("org.llamaedge.twin.MainKt")
}

dependencies {
    implementation(project(":core"))
}
